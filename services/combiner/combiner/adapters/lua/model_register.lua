if model_register(a.model) then call('SET', P .. 'newest:put', a.model.model_id) end
return model_dump(a.model.model_id)
