-- Redis' clock.
--
-- keys    lanes (any key of the partition whose clock is asked for)
-- args    none
-- answer  Unix ms
-- effects none
return whole(now_ms())
