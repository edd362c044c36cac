#!lua flags=allow-oom
local key = P .. 'upkeep'
if call('HGET', key, 'owner') == a.replica then
  call('HDEL', key, 'owner', 'until')
  call('HSET', key, 'due', NOW + a.every_ms)
end
