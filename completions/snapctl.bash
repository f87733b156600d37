# bash completion for snapctl
#
# Completes commands and options, then paths: files, the volumes inside a container, and their @snapshots. The program
# itself knows them; it is given the line up to the cursor and answers "candidate TAB description" lines.

_snapctl() {
    local line=${COMP_LINE:0:COMP_POINT} word answer candidate ats i

    word=${line##*[[:space:]]}
    # readline begins a word at each "@", as in host names; of "db@m" it wants only "@mon".
    ats=
    if [[ $COMP_WORDBREAKS == *@* ]]; then
        ats=${word//[^@]/}
    fi

    COMPREPLY=()
    answer=$(_SNAPCTL_COMPLETE=complete_line SNAPCTL_LINE=$line "$1" 2>/dev/null)
    while IFS=$'\t' read -r candidate _; do
        [[ -n $candidate ]] || continue
        for ((i = ${#ats}; i > 0; i--)); do
            candidate=${candidate#*@}
        done
        [[ -z $ats ]] || candidate=@$candidate
        [[ $word == [\'\"]* ]] || printf -v candidate %q "$candidate"
        COMPREPLY+=("$candidate")
    done <<<"$answer"

    if ((${#COMPREPLY[@]} == 0)); then
        compopt -o bashdefault -o default
    elif ((${#COMPREPLY[@]} == 1)) && [[ ${COMPREPLY[0]} == *[/@] ]]; then
        compopt -o nospace # more is wanted behind it
    fi
}

complete -F _snapctl snapctl
