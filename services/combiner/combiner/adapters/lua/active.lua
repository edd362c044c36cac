#!lua flags=no-writes
-- A time in the future is from before a clock step, and says nothing.
local names = call('ZRANGEBYSCORE', P .. 'seen', NOW - limits.client_window_ms, NOW)
local active = {}
for i = 1, #names, ARGUMENTS do
  local last = math.min(i + ARGUMENTS - 1, #names)
  local shown = {}
  for _, view in ipairs(a.views) do
    for j, streams in ipairs(call('HMGET', P .. 'subs:' .. view, unpack(names, i, last))) do
      shown[j] = shown[j] or streams
    end
  end
  for j = 1, last - i + 1 do
    if shown[j] then active[#active + 1] = names[i + j - 1] end
  end
end
return active
