#!/bin/sh
# Environments of other libraries, each with exact versions, for benchmarks/peers_formats.py.
#
#   sh benchmarks/peers.sh DIRECTORY [saelens] [dictionary_learning] [sparsify] [saebench]
#
# Makes DIRECTORY/NAME with Python's venv for every name (all of them when none is given), some 2 GB each. Any build of
# torch 2.13.0 does; nothing here needs a GPU. PYTHON chooses the interpreter.
set -eu
directory=$1
shift
[ $# -gt 0 ] || set -- saelens dictionary_learning sparsify saebench

new() {
    [ -d "$directory/$1" ] || "${PYTHON:-python3}" -m venv "$directory/$1"
    pip="$directory/$1/bin/pip"
    "$pip" install -q "torch==2.13.0" "numpy==2.4.6" "transformers==5.23.0" "huggingface_hub==2.4.0"
}

for name in "$@"; do
    new "$name"
    case $name in
    saelens) "$pip" install -q "sae-lens==6.54.12" "transformer-lens==3.9.0" "torch==2.13.0" ;;
    dictionary_learning)
        "$pip" install -q "dictionary-learning==0.1.0" "nnsight==0.3.7" "torch==2.13.0"
        # Asked for by nnsight and not used; a build for another torch would break every import.
        "$pip" uninstall -q -y torchvision
        ;;
    sparsify) "$pip" install -q "eai-sparsify==1.3.3" "torch==2.13.0" ;;
    saebench)
        # It asks for numpy 1 and an old datasets, which its custom-SAE interface and core eval do not need.
        "$pip" install -q "sae-lens==6.54.12" "transformer-lens==3.9.0" "torch==2.13.0" \
            "seaborn==0.13.2" "tabulate==0.10.0" "beartype==0.23.1" "jaxtyping==0.3.11" "scikit-learn==1.9.1" \
            "matplotlib==3.11.2" "pandas==3.1.1" "scipy==1.17.1" "pydantic==2.14.3"
        "$pip" install -q --no-deps "sae-bench==0.6.0" "collectibles==0.1.5"
        ;;
    *)
        echo "unknown: $name (saelens, dictionary_learning, sparsify, saebench)" >&2
        exit 2
        ;;
    esac
    echo "$directory/$name/bin/python"
done
