if call('EXISTS', P .. 'model:' .. a.model.model_id) == 0 then
  local refused = model_refused(a.model.model_id) or no_room()
  if refused then return refused end
end
if model_register(a.model) then call('SET', P .. 'newest:put', a.model.model_id) end
return model_dump(a.model.model_id)
