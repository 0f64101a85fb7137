#!/usr/bin/env bash
# The reliability campaign, hours of it; tests/RELIABILITY.md has the figures of the last one.
#
#   tests/campaign.sh FOLDER            goes on where it was stopped
#   SHARE=0.01 tests/campaign.sh FOLDER a hundredth of each stage
#
# Each stage writes FOLDER/STAGE.log, and FOLDER/STAGE.done with its seconds once it has passed.
# Needs the installed package, and for the C ABI clang with libFuzzer.
set -uo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
folder=${1:?a folder for logs} share=${SHARE:-1}
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
export OMP_NUM_THREADS=1
cd "$root"

times() { python -c "print(max(1, round($1 * $share)))"; }

failed=0
stage() { # name, command …
    local name=$1 start=$SECONDS
    if [[ -e $folder/$name.done ]]; then return; fi
    echo "=== $name"
    if "${@:2}" >"$folder/$name.log" 2>&1; then
        tail -n 1 "$folder/$name.log"
        echo $((SECONDS - start)) >"$folder/$name.done"
    else
        tail -n 20 "$folder/$name.log"
        failed=1
    fi
}

trainings() { # in parts, so that a stop loses little
    local parts=20 part
    for ((part = 0; part < parts; part++)); do
        if [[ -e $folder/trainings.$part ]]; then continue; fi
        python tests/campaign/trainings.py "$(times 5000)" $((part * 5000)) || return 1
        touch "$folder/trainings.$part"
    done
}

stage bad_inputs python tests/campaign/bad_inputs.py
stage trainings trainings
stage sparse_trainings python tests/campaign/trainings.py "$(times 3000)" 0 --sparse
stage extended_trainings python tests/campaign/trainings.py "$(times 2000)" 10000 --extended
stage compiled_trainings python tests/campaign/trainings.py "$(times 200)" 1000 --compiled
stage soak python tests/campaign/soak.py "$(times 1000000)" "$folder/soak.pt"
stage step_under_asan tests/sanitized.sh address python tests/campaign/step_twins.py "$(times 100000)"
stage kills python tests/campaign/kills.py "$(times 200)"
stage torchrun python -m pytest -q -p no:cacheprovider tests/distributed/test_torchrun.py
stage threads tests/tsan.sh "$(times 2000)"
stage operators_under_tsan tests/sanitized.sh thread python tests/campaign/threads.py "$(times 1000)"
stage c_abi_fuzzing tests/fuzz/run.sh "$(times 3600)" "$folder/corpus"
stage compilers tests/compilers.sh
exit $failed
