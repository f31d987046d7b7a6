import torch
from helpers import small_data

from abkd_fast import load_model, save_model
from abkd_fast.model_file import ModelFile


def test_model_file_round_trip(tmp_path):
    data = small_data()
    about = ModelFile("gcnii-2x4", 8, 3, {"dropout": 0.1, "init": "xavier"}, "small", "f" * 64)
    model = about.build().eval()
    save_model(tmp_path / "m.safetensors", model, about)
    loaded, found = load_model(tmp_path / "m.safetensors")
    assert found == about
    assert torch.equal(loaded(data.x, data.graph), model(data.x, data.graph))
