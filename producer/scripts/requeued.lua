-- A dead letter's job was submitted anew: the letter goes, the old job names the new one.
--
-- keys    about the old job
-- args    the letter's entry, the new job's id (empty: the letter is only to go)
-- answer  1, or 0: the letter was gone
-- effects the hash, if it is kept yet: requeued_as; the letter is deleted
if ARGV[2] ~= '' and redis.call('EXISTS', JOB) == 1 then redis.call('HSET', JOB, 'requeued_as', ARGV[2]) end
return redis.call('XDEL', DEAD, ARGV[1])
