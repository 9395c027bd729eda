#!/bin/sh
# Print the command of a Python that is new enough; say what to do when there is none.
for command in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11}; do
    if "$command" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        echo "$command"
        exit 0
    fi
done
echo "llmproxy needs Python 3.11 or newer (Debian, Ubuntu: apt install python3 python3-venv); or say PYTHON=/path/to/python3." >&2
exit 1
