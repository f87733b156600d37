# fish completion for snapctl
#
# Completes commands and options, then paths: files, the volumes inside a container, and their @snapshots. The program
# itself knows them; it is given the line up to the cursor and answers "candidate TAB description" lines. fish adds no
# space behind a candidate that ends in "/" or "@".

function __snapctl_complete
    set -l line (commandline --cut-at-cursor --current-process | string collect)
    set -l program (commandline --tokenize --current-process)[1]
    set -l candidates (_SNAPCTL_COMPLETE=complete_line SNAPCTL_LINE=$line $program 2>/dev/null | string match --regex '.+')
    if set -q candidates[1]
        printf '%s\n' $candidates
    else
        __fish_complete_path (commandline --current-token)
    end
end

complete --command snapctl --no-files --arguments '(__snapctl_complete)'
