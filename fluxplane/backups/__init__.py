"""
Backups of projects: dumped, verified by a restore, kept, listed, given out; and the gate before a destructive restore.

`gate` and `freshness` are pure. `dump` and `verify` do the work against real servers and know no catalogue; `store`
keeps the rows and locks and knows no files; `shelf` holds both against each other, `jobs` does the making and proving,
`handlers` speaks HTTP. The bodies and words are the contract's (§2.6, §2.7, §7).
"""
