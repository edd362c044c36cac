local s = a.stream
if call('HSETNX', P .. 'streams:' .. replica_of(s.stream_id), s.stream_id, s.view .. ' ' .. s.client) == 1 then
  call('HINCRBY', P .. 'subs:' .. s.view, s.client, 1)
  if call('SCARD', P .. 'wanting') > 0 then names_event('client', '', {s.client}) end
end
call('ZADD', P .. 'seen', NOW, s.client)
if s.era ~= '' then call('HSET', P .. 'eras', s.client, s.era) end
roster_prune()
