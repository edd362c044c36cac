roster_beat(a.clients)
