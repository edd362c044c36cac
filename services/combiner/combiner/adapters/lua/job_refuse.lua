#!lua flags=allow-oom
local reply, id, rec = judge({training = true, validation = true, inference = true}, a.reason, function(rec)
  return (rec[STATE] == 'rejected' and rec[REASON] == a.reason) or (rec[UPDATE] ~= '' and rec[UPDATE] == a.update_id)
end)
if reply then return reply end
move(id, a.client, rec, 'rejected', a.reason, a.detail)
return {'rejected', id, a.reason}
