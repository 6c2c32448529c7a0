#!/bin/sh
# Answers ssh's prompts from the environment. Unknown questions, above all the one about an
# unknown host key, are shown on standard error (they hold the fingerprint) and refused.
case "$1" in
*"yes/no"*)
    printf '%s\n' "$1" >&2
    exit 1
    ;;
*[Pp]assphrase*)
    [ -n "${PYREMOTEDATA_ANSWER_PASSPHRASE+x}" ] || exit 1
    printf '%s\n' "$PYREMOTEDATA_ANSWER_PASSPHRASE"
    ;;
*)
    [ -n "${PYREMOTEDATA_ANSWER_PASSWORD+x}" ] || exit 1
    printf '%s\n' "$PYREMOTEDATA_ANSWER_PASSWORD"
    ;;
esac
