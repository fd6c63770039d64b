-- Give a tenant's waiting jobs their turn, after its limits changed.
--
-- keys    about any job of the tenant
-- args    tenant
-- answer  nothing
-- effects jobs move from the tenant's line to their lanes
refill(ARGV[1])
