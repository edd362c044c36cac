#!lua flags=no-writes
return {jobs_expired(a.most), sessions_expired(a.most), roster_expired(a.most)}
