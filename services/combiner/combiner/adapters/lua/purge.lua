#!lua flags=allow-oom
return {jobs_purge(a.most), sessions_purge(a.most), roster_purge(a.most)}
