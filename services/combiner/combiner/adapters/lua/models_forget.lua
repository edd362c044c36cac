#!lua flags=allow-oom
-- Those of the ids that are gone from the registry now: registered ones that are not in use, and, if this was asked for
-- before and the reply was lost, those that went then.
local used, gone = models_in_use(), {}
for _, id in ipairs(a.ids) do
  if call('EXISTS', P .. 'model:' .. id) == 1 then
    if not used[id] then
      model_forget(id)
      model_condemn(id)
      gone[#gone + 1] = id
    end
  elseif call('EXISTS', P .. 'condemned:' .. id) == 1 then
    gone[#gone + 1] = id
  end
end
return gone
