"""Scripts that complete the command line in a shell."""

import shutil
import subprocess

import pytest

from croplem_hf.cli import main
from croplem_hf.cli_completion import SHELLS

# What bash does when somebody presses Tab behind these words.
TAB = """
source "$1"
shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}
$(complete -p croplem | sed 's/.*-F \\([^ ]*\\).*/\\1/')
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture
def script(tmp_path, capsys):
    """script(shell) -> file with its script."""

    def script(shell):
        assert main(["completion", shell]) == 0
        (tmp_path / shell).write_text(capsys.readouterr().out)
        return tmp_path / shell

    return script


@pytest.mark.parametrize("shell", SHELLS)
def test_the_scripts_are_valid(script, shell):
    path = script(shell)
    assert path.read_text().count("similar") > 1
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not here to read its script")
    subprocess.run([shell, "-n", str(path)], check=True)


@pytest.mark.parametrize(("typed", "offered"), [
    ("si", {"similar"}), ("data b", {"build"}), ("embed --prec", {"--precision"}), ("fit --head kn", {"knn"}),
    ("push mo", {"model"}), ("index patch", {"patches.parquet"}),
])  # fmt: skip
def test_bash_completes_verbs_options_values_and_files(script, tmp_path, typed, offered):
    (tmp_path / "patches.parquet").touch()
    command = ["bash", "-c", TAB, "bash", str(script("bash")), "croplem", *typed.split()]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.stderr == "" and set(done.stdout.split()) == offered


def test_another_shell_is_wrong_usage(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["completion", "csh"])
    assert stop.value.code == 2 and "invalid choice: 'csh'" in capsys.readouterr().err
