if call('EXISTS', job_key(a.job.job_id)) == 0 then
  if is_full('job') then return redis.error_reply('FCFULL ' .. limits.max_queued .. ' jobs are queued already') end
  local refused = no_room()
  if refused then return refused end
end
job_submit(a.job)
return job_dump(a.job.job_id)
