#!lua flags=allow-oom
roster_beat(a.clients)
