local function session_key(id) return P .. 'session:' .. id end

local function session_event(id)
  local version = call('HINCRBY', session_key(id), 'version', 1)
  local s = call('HMGET', session_key(id), 'state', 'reason', 'current_job_id')
  event('session', {'session_id', id, 'state', s[1], 'reason', s[2], 'job_id', s[3], 'version', version})
end

-- Retention: ended sessions beyond the newest keep_sessions, once they are old. Their jobs and models go their own way.
local function sessions_purge()
  for _ = 1, PURGED_AT_ONCE do
    local oldest, at = unpack(call('ZRANGE', P .. 'ended:session', 0, 0, 'WITHSCORES'))
    if call('ZCARD', P .. 'ended:session') <= limits.keep_sessions or tonumber(at) >= NOW - limits.keep_ms then return end
    call('UNLINK', session_key(oldest), P .. 'session-jobs:' .. oldest, P .. 'session-models:' .. oldest)
    call('ZREM', P .. 'all:session', oldest)
    call('ZREM', P .. 'ended:session', oldest)
  end
end

local function session_end(id)
  call('HSET', session_key(id), 'ended_ms', NOW)
  retire('session', id)
  sessions_purge()
end
