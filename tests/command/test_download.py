import pytest

from mist_fairseq import OnnxGenerator
from mist_fairseq.command.download import main
from mist_fairseq.release.folder import save_folder
from mist_fairseq.release.onnx_folder import save_onnx
from tests.helpers import tiny_released


@pytest.mark.parametrize("save", [save_onnx, lambda model, folder: save_folder(model, folder, "# Card\n")])
def test_a_model_of_the_hub(tmp_path, hub_server, capsys, save):
    """All that is needed to run it, into the cache, and copied where a folder is given."""
    save(tiny_released(), str(tmp_path / "there"))
    files = {path.name: path.read_bytes() for path in (tmp_path / "there").iterdir()}
    hub_server.add("org/tiny", files)
    main(["org/tiny"])
    cached = capsys.readouterr().out.partition(":")[0]
    assert str(tmp_path / "huggingface") in cached
    main(["org/tiny", str(tmp_path / "copy")])
    copied = {path.name: path.read_bytes() for path in (tmp_path / "copy").iterdir()}
    assert copied == {name: content for name, content in files.items() if name != "README.md"}
    if "model.onnx" in copied:
        assert OnnxGenerator.from_pretrained(str(tmp_path / "copy"), "int8").generate(["how can i"])


def test_what_cannot_be_had(tmp_path, hub_server, capsys):
    with pytest.raises(SystemExit, match="^org/none: there is no folder org/none, and no such model on"):
        main(["org/none"])
    with pytest.raises(SystemExit):
        main(["minilm-l6"])
    assert "minilm-l6 needs a DIR to put it into" in capsys.readouterr().err
    with pytest.raises(SystemExit, match=r"^bert-base: .* needs config\.json, vocab\.txt or another"):
        main(["bert-base", str(tmp_path)])
