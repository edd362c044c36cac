local key = P .. 'model:' .. a.model_id
local only_found = call('SISMEMBER', P .. 'found', a.model_id) == 1
if call('EXISTS', key) == 1 and not only_found then return 0 end
local refused = model_refused(a.model_id)
if refused then return refused end
if only_found then model_forget(a.model_id) end
archive_hash(key, a.fields)
if a.client_metrics then call('SET', P .. 'model-clients:' .. a.model_id, a.client_metrics) end
archive_index('model', a.model_id, a.seq)
if a.session_id ~= '' then call('ZADD', P .. 'session-models:' .. a.session_id, a.seq, a.model_id) end
return 1
