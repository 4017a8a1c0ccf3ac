# bash completion for tidegate, as `tidegate completion bash` writes it.
_tidegate() {
    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]}
    local path="" words="" files="" word i
    # bash makes three words of --flag=value.
    if [ "$prev" = "=" ]; then prev=${COMP_WORDS[COMP_CWORD-2]}; fi
    if [ "$cur" = "=" ]; then cur=""; fi
    for ((i = 1; i < COMP_CWORD; i++)); do
        word=${COMP_WORDS[i]}
        case "$word" in
            --by|--config|--lines|--log-file|--output|--runtime-dir|--scope|--since|--state-dir|--to|-n)
                if [ "${COMP_WORDS[i+1]}" = "=" ]; then i=$((i + 1)); fi
                i=$((i + 1))
                continue ;;
        esac
        case "${path:+$path }$word" in
            "run"|"start"|"stop"|"restart"|"status"|"runs"|"top"|"usage"|"forget"|"models"|"sweep"|"recycle"|"upgrade"|"reload"|"logs"|"check"|"doctor"|"bundle"|"replay"|"token"|"token new"|"token list"|"token revoke"|"notify"|"notify test"|"service"|"service install"|"service uninstall"|"service start"|"service stop"|"service restart"|"service status"|"service logs"|"completion"|"version"|"help")
                path="${path:+$path }$word" ;;
        esac
    done
    case "$prev" in
        --config|--log-file|--output) files=default ;;
        --runtime-dir|--state-dir) files=dirnames ;;
        --by) words="token model upstream day format" ;;
        --scope) words="use read owner" ;;
        --lines|--since|--to|-n) : ;;
        *)
            case "$path" in
                "")
                    words="run start stop restart status runs top usage forget models sweep recycle upgrade reload logs check doctor bundle replay token notify service completion version help"
                    case "$cur" in -*) words="-h --help --version" ;; esac ;;
                "run")
                    words=""
                    words="-h --help --config --state-dir --runtime-dir --log-file --park" ;;
                "start")
                    words=""
                    words="-h --help --config --state-dir --runtime-dir" ;;
                "stop")
                    words=""
                    words="-h --help --config --state-dir --runtime-dir" ;;
                "restart")
                    words=""
                    words="-h --help --config --state-dir --runtime-dir" ;;
                "status")
                    words=""
                    words="-h --help --config --state-dir --runtime-dir --json -v --verbose" ;;
                "runs")
                    words=""
                    words="-h --help --config --state-dir --runtime-dir --json --all -w --wide" ;;
                "top")
                    words=""
                    words="-h --help --config --state-dir --runtime-dir --json --once" ;;
                "usage")
                    words=""
                    words="-h --help --config --state-dir --runtime-dir --json --by --since -w --wide" ;;
                "forget")
                    words=""
                    words="-h --help --config --state-dir --runtime-dir --json --all --yes" ;;
                "models")
                    words=""
                    words="-h --help --config --state-dir --runtime-dir --json -w --wide" ;;
                "sweep")
                    words=""
                    words="-h --help --config --state-dir --runtime-dir --json --finished" ;;
                "recycle")
                    words=""
                    words="-h --help --config --state-dir --runtime-dir --no-wait" ;;
                "upgrade")
                    words=""
                    words="-h --help --config --state-dir --runtime-dir --no-wait" ;;
                "reload")
                    words=""
                    words="-h --help --config --state-dir --runtime-dir --json" ;;
                "logs")
                    words=""
                    words="-h --help --config --state-dir --runtime-dir --json -f --follow -n --lines --since" ;;
                "check")
                    words=""
                    words="-h --help --config --state-dir --runtime-dir --json" ;;
                "doctor")
                    words=""
                    words="-h --help --config --state-dir --runtime-dir --json --no-tokens" ;;
                "bundle")
                    words=""
                    words="-h --help --config --state-dir --runtime-dir --json --output" ;;
                "replay")
                    words=""
                    files=default
                    case "$cur" in -*) words="-h --help --config --state-dir --runtime-dir --json" ;; esac ;;
                "token")
                    words="new list revoke"
                    case "$cur" in -*) words="-h --help" ;; esac ;;
                "token new")
                    words=""
                    words="-h --help --config --state-dir --runtime-dir --scope --read" ;;
                "token list")
                    words=""
                    words="-h --help --config --state-dir --runtime-dir --json" ;;
                "token revoke")
                    words=""
                    words="-h --help --config --state-dir --runtime-dir" ;;
                "notify")
                    words="test"
                    case "$cur" in -*) words="-h --help" ;; esac ;;
                "notify test")
                    words=""
                    words="-h --help --config --state-dir --runtime-dir --json --to" ;;
                "service")
                    words="install uninstall start stop restart status logs"
                    case "$cur" in -*) words="-h --help" ;; esac ;;
                "service install")
                    words=""
                    words="-h --help --config --state-dir --runtime-dir --dry-run --no-start --socket --system --user" ;;
                "service uninstall")
                    words=""
                    words="-h --help --config --state-dir --runtime-dir --system --user" ;;
                "service start")
                    words=""
                    words="-h --help --config --state-dir --runtime-dir --system --user" ;;
                "service stop")
                    words=""
                    words="-h --help --config --state-dir --runtime-dir --system --user" ;;
                "service restart")
                    words=""
                    words="-h --help --config --state-dir --runtime-dir --system --user" ;;
                "service status")
                    words=""
                    words="-h --help --config --state-dir --runtime-dir --json --system --user" ;;
                "service logs")
                    words=""
                    words="-h --help --config --state-dir --runtime-dir --json -f --follow -n --lines --since --system --user" ;;
                "completion")
                    words="bash zsh fish"
                    case "$cur" in -*) words="-h --help" ;; esac ;;
                "version")
                    words=""
                    words="-h --help --config --state-dir --runtime-dir --json" ;;
                "help")
                    words="run start stop restart status runs top usage forget models sweep recycle upgrade reload logs check doctor bundle replay token notify service completion version help"
                    case "$cur" in -*) words="-h --help" ;; esac ;;
            esac ;;
    esac
    COMPREPLY=()
    if [ -n "$words" ]; then
        # shellcheck disable=SC2207  # the words have no spaces, and 3.2 has no mapfile
        COMPREPLY=($(compgen -W "$words" -- "$cur"))
    fi
    if [ -n "$files" ] && [ ${#COMPREPLY[@]} -eq 0 ]; then
        # shellcheck disable=SC2207
        compopt -o "$files" 2>/dev/null || COMPREPLY=($(compgen -f -- "$cur"))
    fi
}
complete -F _tidegate tidegate
