-- Create the lanes and their group where they are missing.
--
-- keys    lanes
-- args    group
-- answer  nothing
-- effects a missing lane or group is created, from the first entry on
for _, lane in ipairs(KEYS) do delivered(lane, ARGV[1]) end
