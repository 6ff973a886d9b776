# shellcheck shell=bash
# How the demos print the title of a step. Source it.

# title WORDS: bold on a terminal that takes it, plain if NO_COLOR is set (https://no-color.org).
title() {
    if [ -t 1 ] && [ -z "${NO_COLOR:-}" ] && [ "${TERM:-dumb}" != dumb ]; then
        printf '\n\033[1m== %s\033[0m\n' "$*"
    else
        printf '\n== %s\n' "$*"
    fi
}
