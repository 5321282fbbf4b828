# Sourced by the checks: counts and prints what each of them sees.
# shellcheck shell=bash

passed=0
failed=0
check() { # check WHAT EXPECTED SEEN: prints what was seen
    if [ "$2" = "$3" ]; then
        passed=$((passed + 1))
        echo "ok      $1: $3"
    else
        failed=$((failed + 1))
        echo "FAILED  $1: expected $2, saw $3"
    fi
}
contains() { # contains WHAT NEEDLE HAYSTACK
    case $3 in
    *"$2"*) check "$1" "$2" "$2" ;;
    *) check "$1" "$2" "$3" ;;
    esac
}
succeeds() { # succeeds WHAT COMMAND…: prints the output of a command that fails
    local code=0 output
    output=$("${@:2}" 2>&1) || code=$?
    check "$1: exit code" 0 "$code"
    [ "$code" -eq 0 ] || echo "$output"
}
summary() { # summary: fails if a check has failed
    echo "$passed passed, $failed failed"
    [ "$failed" -eq 0 ]
}
