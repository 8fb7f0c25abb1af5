# Of OneBatch's rows: a decode step that the host waits for (phase=decode) over one of the same process that is launched while the one ahead of
# it runs (phase=overlap), as a row of its own.
BEGIN { print "Unit sync/hidden better=lower" }
/\/phase=(decode|overlap)[ \t]/ {
	for (i = 3; i <= NF; i++) if ($i == "decode-ms") ms = $(i - 1)
	if (/phase=decode/) { sync = ms; name = $1 } else if (sync) { print name, 1, sync / ms, "sync/hidden"; sync = 0 }
}
