if call('EXISTS', job_key(a.job.job_id)) == 0 and is_full('job') then
  return redis.error_reply('FCFULL ' .. limits.max_queued .. ' jobs are queued already')
end
job_submit(a.job)
return job_dump(a.job.job_id)
