-- Say that a job with a strike runs alone now: if its worker is lost again, it was the job.
--
-- keys    job
-- args    epoch, consumer
-- answer  1, or 0: the caller is not the owner
-- effects the hash: alone
if not owns(KEYS[1], ARGV[1], ARGV[2]) then return 0 end
redis.call('HSET', KEYS[1], 'alone', '1')
return 1
