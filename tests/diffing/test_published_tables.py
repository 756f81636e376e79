"""Tables that were published with crosscoders: their norm differences point the other way."""

import pytest
import torch

from saeworks.diffing.published_tables import read_latent_table
from saeworks.errors import InputError


def table(path, text):
    (path / "t.csv").write_text(text)
    return path / "t.csv"


def test_norm_differences_are_turned_and_text_is_left_out(tmp_path):
    text = ",dec_norm_diff,tag,freq,dead\n0,0.05,Chat only,0.25,False\n1,0.5,Shared,,True\n2,1.0,Base only,0.5,False\n"
    found = read_latent_table(table(tmp_path, text))
    assert found["delta_norm"].tolist() == pytest.approx([0.95, 0.5, 0.0])
    assert list(found) == ["delta_norm", "latent", "freq", "dead"]
    assert found["dead"].tolist() == [0, 1, 0]
    assert torch.isnan(found["freq"]).tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("latent,dec_norm_diff\n", "no row of a latent"),
        ("latent,dec_norm_dif\n0,0.4\n", "Did you mean 'dec_norm_dif'"),
        ("latent,dec_norm_diff\n0\n", "Row 2 of .* has 1 cells"),
        ("latent,dec_norm_diff\n0,high\n", "holds text"),
        ("latent,dec_norm_diff\n0,-0.4\n", "outside"),
    ],
)
def test_what_is_no_such_table_is_refused(tmp_path, text, words):
    with pytest.raises(InputError, match=words):
        read_latent_table(table(tmp_path, text))
    with pytest.raises(InputError, match="no table of latents"):
        read_latent_table(tmp_path / "missing.csv")
