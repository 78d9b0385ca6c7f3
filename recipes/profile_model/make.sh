#!/bin/sh
# Makes the bundled profile model from nothing: recipes/profile_model/make.sh OUT [WORDNET] [DATA]
#
# OUT      folder of the runs; the same call again goes on where it was stopped.
# WORDNET  folder of WordNet 3.0's data files (Debian: apt install wordnet-base) [/usr/share/wordnet].
# DATA     folder with ml-latest-small and reclm-mind, to measure with; they are not learned from.
#
# DEVICE   (from the environment) cpu or cuda [cpu]. The bundled weights are of SFT on a GPU.
# STEPS    of SFT [3000 of 32 dialogues, each seen once; on a GPU 4000 of 64, seen three times]; another number is another run, so give another OUT.
# THREADS  of the CPU [2, on otherwise idle cores; beside other work 1 is faster; beside a GPU 8].
# JOBS     that make dialogues [2; beside a GPU one a core].
#
# docs/profile-model.md has the figures.
set -eu
here=$(dirname "$0")
out=$1
wordnet=${2:-/usr/share/wordnet}
data=${3:-}
python=${PYTHON:-python}
reclm=${RECLM:-reclm}
device=${DEVICE:-cpu}
if [ "$device" = cpu ]; then
    steps=${STEPS:-3000} batch=32 pass_tokens=1024 threads=${THREADS:-2} jobs=${JOBS:-2} epochs=1
else
    steps=${STEPS:-4000} batch=64 pass_tokens=16384 threads=${THREADS:-8} jobs=${JOBS:-$(nproc)} epochs=3
fi
stage() { echo "$(date '+%F %T') $1"; }

stage start
[ -f "$out/start/made" ] || {
    "$python" "$here/start.py" "$out/start" --wordnet "$wordnet" --device "$device" --threads "$threads"
    touch "$out/start/made"
}
stage dialogues
[ -f "$out/dialogues/made" ] || {
    "$python" "$here/dialogues.py" "$out/start" "$out/dialogues" --wordnet "$wordnet" --sft $((steps * batch * 33 / 32 / epochs)) \
        --preferences 6000 --rl 4000 --jobs "$jobs"
    touch "$out/dialogues/made"
}

stage sft
"$reclm" tune sft --base "$out/start" --dialogues "$out/dialogues/sft.jsonl" -o "$out/sft" --full --optimizer muon --lr 1.5e-3 --lr-muon 0.02 \
    --epochs "$epochs" --max-steps "$steps" --schedule linear --decay 0.4 --warmup 0.04 --label-weight 6 --phrase-weight 6 --batch "$batch" --max-length 192 \
    --pass-tokens "$pass_tokens" --no-packing --save-every 50 --eval-every 150 --device "$device" --dtype float32 --threads "$threads" --seed 1

stage reward
"$reclm" tune reward --base "$out/sft/model" --dialogues "$out/dialogues/preference.jsonl" -o "$out/reward" --lora-r 32 --lora-alpha 64 \
    --lora-dropout 0 --lr 1.5e-3 --schedule linear --warmup 0.1 --epochs 2 --max-steps 260 \
    --batch 32 --max-length 160 --pass-tokens "$pass_tokens" --save-every 65 --eval-every 65 --device "$device" --dtype float32 --threads "$threads" --seed 2

stage ppo
"$reclm" tune ppo --base "$out/sft/model" --reward "$out/reward/adapter" --dialogues "$out/dialogues/rl.jsonl" -o "$out/ppo" \
    --steps 16 --batch 128 --micro-batch 32 --epochs 2 --lr 1e-3 --lora-r 16 --lora-alpha 32 --max-new-tokens 80 --max-length 256 \
    --weight model=0.5 --weight parse=3 --weight rank=1 --eval-answers 80 --eval-every 4 --save-every 4 \
    --device "$device" --dtype float32 --threads "$threads" --seed 1

stage export
"$reclm" export --base "$out/sft/model" --adapter "$out/ppo/adapter" --quant q8_0 -o "$out/gguf" --name reclm-profile --threads "$threads"

[ -z "$data" ] || for model in sft ppo gguf; do
    stage "measure $model"
    case $model in
    sft) set -- "$out/sft/model" ;;
    ppo) set -- "$out/sft/model" --adapter "$out/ppo/adapter" ;;
    gguf) set -- "$out/gguf/reclm-profile-q8_0.gguf" ;;
    esac
    "$python" "$here/evaluate.py" "$@" --data "$data" --threads "$threads" --keep "$out/measured" --out "$out/measured/$model.json"
done
stage done
