local function session_key(id) return P .. 'session:' .. id end

local function session_event(id)
  local version = call('HINCRBY', session_key(id), 'version', 1)
  local s = call('HMGET', session_key(id), 'state', 'reason', 'current_job_id')
  event('session', {'session_id', id, 'state', s[1], 'reason', s[2], 'job_id', s[3], 'version', version})
end

-- The ended sessions that retention no longer keeps: beyond the newest keep_sessions, once they are old. Their jobs
-- and models go their own way.
local function sessions_expired(most)
  local found, oldest = {}, call('ZRANGE', P .. 'ended:session', 0, most - 1, 'WITHSCORES')
  local number = call('ZCARD', P .. 'ended:session')
  for i = 1, #oldest, 2 do
    if number <= limits.keep_sessions or tonumber(oldest[i + 1]) >= NOW - limits.keep_ms then break end
    found[#found + 1] = oldest[i]
    number = number - 1
  end
  return found
end

local function session_forget(id)
  call('UNLINK', session_key(id), P .. 'session-jobs:' .. id, P .. 'session-models:' .. id)
  call('ZREM', P .. 'all:session', id)
  call('ZREM', P .. 'ended:session', id)
end

local function sessions_purge(most)
  local expired = sessions_expired(most)
  for _, id in ipairs(expired) do session_forget(id) end
  return expired
end

local function session_end(id)
  call('HSET', session_key(id), 'ended_ms', NOW)
  retire('session', id)
  sessions_purge(PURGED_AT_ONCE)
end
