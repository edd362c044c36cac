local SESSIONS_AT_AN_END = 2

local function session_key(id) return P .. 'session:' .. id end

-- Results of earlier rounds; those of the round under way are in the document.
local function results_key(id) return P .. 'session-results:' .. id end

local function session_event(id)
  local version = call('HINCRBY', session_key(id), 'version', 1)
  local s = call('HMGET', session_key(id), 'state', 'reason', 'current_job_id')
  event('session', {'session_id', id, 'state', s[1], 'reason', s[2], 'job_id', s[3], 'version', version})
end

-- Its jobs and models go their own way.
local function session_forget(id)
  call('UNLINK', session_key(id), results_key(id), P .. 'session-jobs:' .. id, P .. 'session-models:' .. id)
  call('ZREM', P .. 'all:session', id)
  call('ZREM', P .. 'ended:session', id)
end

local function session_end(id)
  call('HSET', session_key(id), 'ended_ms', NOW)
  retire('session', id)
  purge_ended(SESSIONS_AT_AN_END, RECORDS_AT_AN_END)
end
