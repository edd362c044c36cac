for _, model in ipairs(a.models) do
  if not model_refused(model.model_id) and model_register(model) then
    call('SADD', P .. 'found', model.model_id)
  end
end
