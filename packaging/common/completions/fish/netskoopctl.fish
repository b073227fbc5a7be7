# Completion of netskoopctl for fish. The program itself knows what fits; names of probes come from the running daemon.
function __netskoopctl_complete
    set -l words (commandline --tokenize --cut-at-cursor --current-process) (commandline --current-token)
    netskoopctl __complete -- $words[2..-1] 2>/dev/null
end
complete --command netskoopctl --no-files --arguments '(__netskoopctl_complete)'
