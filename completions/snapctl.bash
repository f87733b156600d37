# bash completion for snapctl
#
# Completes commands and options, then paths: files, the volumes inside a container, and their @snapshots. The program
# itself knows them; it is given the line up to the cursor and answers "candidate TAB description" lines.

_snapctl() {
    local line=${COMP_LINE:0:COMP_POINT} word candidate prefix answer
    word=${line##*[[:space:]]}

    COMPREPLY=()
    answer=$(_SNAPCTL_COMPLETE=complete_line SNAPCTL_LINE=$line "$1" 2>/dev/null)
    while IFS=$'\t' read -r candidate _; do
        [[ -n $candidate ]] && COMPREPLY+=("$candidate")
    done <<<"$answer"
    if ((${#COMPREPLY[@]} == 0)); then
        compopt -o bashdefault -o default
        return
    fi

    if ((${#COMPREPLY[@]} == 1)) && [[ ${COMPREPLY[0]} == *[/@] ]]; then
        compopt -o nospace
    fi
    # readline may take "@" (or "=" and ":") for the end of a word; then it wants only what follows the last of them.
    prefix=${word%"${word##*["$COMP_WORDBREAKS"]}"}
    if [[ -n $prefix ]]; then
        COMPREPLY=("${COMPREPLY[@]#"$prefix"}")
    else
        compopt -o filenames
    fi
}

complete -F _snapctl snapctl
