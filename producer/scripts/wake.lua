-- Wake a client that waits in one blocking read, so that it reads other streams as well.
--
-- keys    the client's wake stream
-- args    time to live (ms)
-- answer  nothing
-- effects an entry, newer than all before and the only one; the stream's time to live
redis.call('XADD', KEYS[1], 'MAXLEN', 1, '*', 'w', '1')
redis.call('PEXPIRE', KEYS[1], ARGV[1])
