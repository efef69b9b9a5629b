#!/bin/bash
# An agent's loop on a repository: the source goes in as a clone, the agent
# edits, tests and commits inside, and its branches come back, to be looked at
# before anything of them is run or merged:
#
#   sudo examples/agent-loop.sh
#
# The repository is a small one, made for this in a temporary directory. The
# agent is a stand-in that knows one edit; AGENT, if set, is a command to run
# inside instead, in the clone, once per round:
#
#   sudo AGENT='my-agent "make ./check pass"' examples/agent-loop.sh
#
# It uses the `spark` in PATH, or builds one. The base bookworm stays, to go on
# with; the spark and the repository are removed. SPARK_ROOT and SPARK_RUN, if
# set, say where everything is.
set -euo pipefail

# shellcheck source=../tests/prepare.sh
. "$(dirname "${BASH_SOURCE[0]}")/../tests/prepare.sh"

need_root
install_missing git "${run_packages[@]}"
if ! command -v spark >/dev/null; then
    install_missing "${build_packages[@]}"
    find_cargo
    build_release
    PATH=$release:$PATH
fi

heading() { printf '\n### %s\n\n' "$*"; }

# Prints a command line as one would type it, and runs it.
try() {
    printf '$ %s\n' "$1"
    eval "$1"
}

work=$(mktemp -d)
project=agent-loop-$$
cleanup() {
    cd /
    if spark info -P "$project" agent >/dev/null 2>&1; then
        spark delete -P "$project" -f --now agent
    fi
    if spark project info "$project" >/dev/null 2>&1; then
        spark project delete "$project"
    fi
    rm -rf "$work"
}
trap cleanup EXIT
trap 'echo "agent-loop.sh: this went wrong: $BASH_COMMAND" >&2' ERR
set -E
export SPARK_PROJECT=$project

heading 'A repository with a test that fails'
mkdir "$work/sum"
cd "$work/sum"
git init -q -b main
git config user.name you
git config user.email you@example.org
cat >sum <<'END'
#!/bin/sh
# Adds its arguments.
total=0
for n; do total=$((total - n)); done
echo "$total"
END
cat >check <<'END'
#!/bin/sh
[ "$(./sum 1 2 3)" = 6 ] || { echo "1 2 3 do not add up to 6"; exit 1; }
echo "passed"
END
chmod +x sum check
git add .
git commit -qm 'A sum, and its test'
try 'git log --oneline'
try './check || true'

heading 'Source in: a spark with a clone of it'
if ! spark base info bookworm >/dev/null 2>&1; then
    try 'spark base bootstrap bookworm'
fi
try 'spark create agent --base bookworm --clone'
try 'spark exec agent -- sh -c "apt-get update -qq && apt-get install -y -qq --no-install-recommends git" >/dev/null 2>&1'
try 'spark exec agent -- git config --global user.name agent'
try 'spark exec agent -- git config --global user.email agent@example.org'
try 'spark exec agent -- git switch -q -c fix'

heading 'The loop: until the test passes, at most three rounds'
agent=${AGENT:-"sed -i 's/total - n/total + n/' sum"}
echo "(The agent: $agent)"
for round in 1 2 3; do
    echo "(round $round)"
    if try 'spark exec agent -- ./check'; then
        break
    fi
    # shellcheck disable=SC2016  # it is printed as it would be typed
    try 'spark exec agent -- sh -c "$agent"'
    try 'spark exec agent -- git commit -qam "Make the test pass"'
done

heading 'Work out: its branches, as refs/spark/agent/*'
try 'spark pull agent'
try 'git status --short'
try 'git log --oneline main..refs/spark/agent/fix'
try 'git diff main refs/spark/agent/fix'

heading 'Looked at, it is merged'
try 'git merge -q --ff-only refs/spark/agent/fix'
try 'git log --oneline'
