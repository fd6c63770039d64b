"""What other services import to push generation jobs and read their tokens. No torch in here.

errors.py      everything that is raised
keys.py        the names of keys and jobs
protocol.py    what lies in Redis (the table); Job, SamplingParams, events, Result
wire.py        those as bytes
scripts/       the Lua scripts: each change of a job's state
calls/         the scripts as typed calls, for both sides
"""
