"""One test for each silent hole of gin, and the text that the user reads instead."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from modlib.components import known_components
from modlib.config import load
from modlib.runtime.errors import ConfigError
from tests.config.projects import Project

# Lines 1 to 3 of every file are the import, the model and Model.dim = 8.


def test_unknown_selector(project: Project) -> None:
    assert project.problems("Modle.dropout = 0.1") == ["a.gin:4: no component Modle. Did you mean Model?"]


def test_unknown_selector_with_nothing_close(project: Project) -> None:
    (text,) = project.problems("Zzyzx.dropout = 0.1")
    assert text == (
        "a.gin:4: no component Zzyzx. `modlib list` shows all; a component of your own needs its import in the gin file"
    )


def test_variant_instead_of_name(project: Project) -> None:
    assert project.problems("RUN.optimizer = @adam_w") == [
        "a.gin:4: no component adam_w for @adam_w. Did you mean AdamW?"
    ]


def test_selector_of_another_type(project: Project) -> None:
    assert project.problems("optimizer.Model.dropout = 0.1") == [
        "a.gin:4: no component optimizer.Model. Did you mean model.Model?"
    ]


def test_selector_with_its_type(project: Project) -> None:
    assert project.load("model.Model.dropout = 0.5").resolved["Model.dropout"] == 0.5


def test_unknown_reference(project: Project) -> None:
    (text,) = project.problems("Model.norm = @Nrom\nNorm.eps = 1e-3")
    assert text == "a.gin:4: no component Nrom for @Nrom. Did you mean Norm?"


def test_component_registered_with_gin_alone(project: Project) -> None:
    import gin

    @gin.register("PlainGin", module="plain")
    def plain_gin() -> None: ...

    try:
        (text,) = project.problems("Model.norm = @PlainGin")
    finally:
        gin.config._REGISTRY.pop("plain.PlainGin")
    assert text == (
        "a.gin:4: no component PlainGin for @PlainGin. It is registered with gin alone; register it with @component of "
        "modlib.components"
    )


def test_unknown_parameter(project: Project) -> None:
    assert project.problems("Model.droput = 0.1") == [
        "a.gin:4: Model has no parameter 'droput'. Did you mean 'dropout' (float, default 0.0)?"
    ]


def test_unknown_parameter_lists_the_known(project: Project) -> None:
    (text,) = project.problems("RUN.evaluators = [@Eval]\nEval.zzz = 1")
    assert text == "a.gin:5: Eval has no parameter 'zzz'. It has: name, data, depth"


def test_unknown_parameter_that_is_required_is_told_once(project: Project) -> None:
    text = f"import {project.module}\nRUN.model = @Model\nModel.dims = 8"
    assert project.problems(text, whole=False) == [
        "a.gin:3: Model has no parameter 'dims'. Did you mean 'dim' (int, required)?"
    ]


def test_key_swallowed_by_kwargs(project: Project) -> None:
    (text,) = project.problems("Model.norm = @Norm\nNorm.zzz = 1e-3")
    assert text.startswith(
        "a.gin:5: Norm has no parameter 'zzz'. **extra would swallow it; declare it in the signature ("
    )


def test_runtime_argument(project: Project) -> None:
    assert project.problems("Model.device = 'cuda'") == [
        "a.gin:4: Model.device is passed at run time and cannot be set in a gin file; remove the binding"
    ]


def test_unknown_scope(project: Project) -> None:
    assert project.problems(
        """\
        RUN.evaluators = [@train/Eval, @val/Eval]
        tarin/Eval.depth = 3
        """
    ) == [
        "a.gin:5: scope 'tarin' is never entered, so tarin/Eval.depth has no effect. Did you mean train? "
        "Known scopes: train, val"
    ]


def test_scope_in_a_run_without_scopes(project: Project) -> None:
    assert project.problems("train/Model.dropout = 0.1") == [
        "a.gin:4: scope 'train' is never entered, so train/Model.dropout has no effect. This run has no scopes"
    ]


def test_scope_of_another_component(project: Project) -> None:
    assert project.problems("RUN.evaluators = [@a/Eval, @b/Eval]\nModel.norm = @b/Norm\na/Norm.eps = 1.0") == [
        "a.gin:6: a/Norm.eps has no effect: Norm is not used in the scope 'a', only in b; correct the scope"
    ]


def test_component_used_without_the_scope(project: Project) -> None:
    assert project.problems("RUN.evaluators = [@a/Eval]\nModel.norm = @Norm\na/Norm.eps = 1.0") == [
        "a.gin:6: a/Norm.eps has no effect: Norm is used without a scope; write Norm.eps"
    ]


def test_unknown_macro(project: Project) -> None:
    assert project.problems("LEARNING_RATE = 8\nModel.ffn_dim = %LEARNIG_RATE") == [
        "a.gin:5: no macro LEARNIG_RATE for %LEARNIG_RATE. Did you mean LEARNING_RATE? Define it: LEARNIG_RATE = value"
    ]


def test_macro_never_used(project: Project) -> None:
    text = "LEARNING_RATE = 8\nModel.ffn_dim = %LEARNING_RATE\nLEARNIG_RATE = 9"
    assert project.problems(text) == [
        "a.gin:6: the macro LEARNIG_RATE is defined but never used. Did you mean LEARNING_RATE (a.gin:4)?"
    ]
    assert project.problems("ZZ = 8") == ["a.gin:4: the macro ZZ is defined but never used. Remove it"]


def test_macro_misspelt_on_the_command_line(project: Project) -> None:
    text = "STEPS = 8\nModel.ffn_dim = %STEPS"
    assert project.problems(text, ["STEP=3"]) == [
        "--gin_param #1: the macro STEP is defined but never used. Did you mean STEPS (a.gin:4)?"
    ]


def test_macro_without_effect_on_the_command_line(project: Project) -> None:
    text = "EPS = 1e-3\nModel.norm = @Norm\nNorm.eps = %EPS"
    assert project.load(text, ["Model.norm=None"]).resolved["Model.norm"] is None  # the file's EPS is switched off
    assert project.problems(text, ["Model.norm=None", "EPS=1e-2"]) == [
        "--gin_param #2: EPS has no effect: nothing that this run uses reads %EPS; remove it"
    ]


def test_macro_cycle(project: Project) -> None:
    assert project.problems("A = %B\nB = 2 * %A\nModel.ffn_dim = %A") == [
        "a.gin:6: Model.ffn_dim: the macros define each other: A -> B -> A; give one of them a value"
    ]


def test_required_left(project: Project) -> None:
    assert project.problems("DATA_DIR = %gin.REQUIRED\nModel.path = %DATA_DIR\nModel.ffn_dim = %gin.REQUIRED") == [
        "a.gin:4: DATA_DIR is required and not set; set it in a gin file, or with --gin_param \"DATA_DIR='...'\"",
        'a.gin:6: Model.ffn_dim is required and not set; set it in a gin file, or with --gin_param "Model.ffn_dim=..."',
    ]


def test_required_given(project: Project) -> None:
    config = project.load("DATA_DIR = %gin.REQUIRED\nModel.path = %DATA_DIR", ["DATA_DIR='/data'"])
    assert config.resolved["Model.path"] == "/data"


def test_required_inside_a_list(project: Project) -> None:
    assert project.problems("N = %gin.REQUIRED\nModel.layers = [1, %N]") == [
        'a.gin:4: N is required and not set; set it in a gin file, or with --gin_param "N=..."'
    ]


def test_parameter_without_default(project: Project) -> None:
    text = f"import {project.module}\nRUN.model = @Model\nRUN.evaluators = [@a/Eval]\na/Eval.data = @Data"
    texts = project.problems(text, whole=False)
    assert [one.split("; an argument")[0] for one in texts] == [
        "a.gin:2: Model needs dim (int), which is not set; write Model.dim = value",
        "a.gin:4: Data needs path (str), which is not set; write Data.path = value",
    ]
    assert "an argument that Python passes belongs in runtime_args of @component (" in texts[0]


def test_binding_of_a_component_nobody_uses(project: Project) -> None:
    assert project.problems("Norm.eps = 1e-3") == [
        "a.gin:4: Norm.eps has no effect: nothing in this run uses Norm; refer to it with @Norm, or remove the binding"
    ]


def test_override_switches_a_component_off(project: Project) -> None:
    text = "Model.norm = @Norm\nNorm.eps = 1e-3\nRUN.evaluators = [@a/Eval]\na/Eval.name = 'a'"
    config = project.load(text, ["Model.norm=None", "RUN.evaluators=[]"])
    assert "Norm.eps" not in config.resolved
    assert "a/Eval.name" not in config.resolved


def test_binding_without_effect_on_the_command_line(project: Project) -> None:
    assert project.problems("Model.norm = @Norm", ["Model.norm=None", "Norm.eps=1.0"]) == [
        "--gin_param #2: Norm.eps has no effect: nothing in this run uses Norm; refer to it with @Norm, or remove the "
        "binding"
    ]


def test_binding_hidden_by_a_scope(project: Project) -> None:
    text = "RUN.evaluators = [@a/Eval]\na/Eval.depth = 1"
    assert project.problems(text, ["Eval.depth=2"]) == [
        "--gin_param #1: Eval.depth has no effect: a/Eval.depth is set at a.gin:5, and a scope wins; "
        "set a/Eval.depth instead"
    ]
    assert project.load("Eval.depth = 2\n" + text).resolved["a/Eval.depth"] == 1  # a default, then its override


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("Model.ffn_dim = '100'", "Model.ffn_dim = '100' is str, expected int or None; write 100"),
        ("Model.ffn_dim = 2.0", "Model.ffn_dim = 2.0 is float, expected int or None; write 2"),
        ("Model.ffn_dim = True", "Model.ffn_dim = True is bool, expected int or None"),
        ("Model.ffn_dim = @Norm", "Model.ffn_dim = @Norm is a component, expected int or None"),
        ("Model.ffn_dim = @Norm()", "Model.ffn_dim = @Norm() is the result of a component, expected int or None"),
        ("Model.dropout = True", "Model.dropout = True is bool, expected float"),
        ("Model.dropout = None", "Model.dropout = None is None, expected float"),
        ("Model.bias = 1", "Model.bias = 1 is int, expected bool; write True"),
        ("Model.bias = 'false'", "Model.bias = 'false' is str, expected bool; write False"),
        ("Model.activation = 'geluu'", "Model.activation = 'geluu' is str, expected 'gelu' or 'relu'; write 'gelu'"),
        ("Model.betas = 0.9", "Model.betas = 0.9 is float, expected tuple[float, float]; write [0.9]"),
        ("Model.betas = [0.9]", "Model.betas = [0.9] is list, expected tuple[float, float] (2 values, not 1)"),
        ("Model.betas = (0.9, 'x')", "Model.betas = (0.9, 'x') does not fit, expected float at [1], where 'x' is str"),
        ("Model.layers = (1, True)", "Model.layers = (1, True) does not fit, expected int at [1], where True is bool"),
        ("Model.layers = 3", "Model.layers = 3 is int, expected list[int]; write [3]"),
        ("Model.norm = 'Norm'", "Model.norm = 'Norm' is str, expected a component, as in @Name or None; write @Norm"),
        ("Model.path = 3", "Model.path = 3 is int, expected str or a path in quotes; write '3'"),
        ("Model.options = [1]", "Model.options = [1] is list, expected dict[str, Any] or None"),
        (
            "Model.options = {1: 2}",
            "Model.options = {1: 2} does not fit, expected str at key 1, where 1 is int; write '1'",
        ),
        ("RUN.evaluators = 'Eval'", "RUN.evaluators = 'Eval' is str, expected Sequence[Any]; write ['Eval']"),
        (
            "RUN.subscribers = [3]",
            "RUN.subscribers = [3] does not fit, expected a component, as in @Name at [0], where 3 is int",
        ),
    ],
)
def test_wrong_type(project: Project, line: str, expected: str) -> None:
    assert project.problems(line) == [f"a.gin:4: {expected}"]


def test_wrong_type_names_macro_and_override(project: Project) -> None:
    assert project.problems("N = 'x'\nModel.ffn_dim = %N") == [
        "a.gin:5: Model.ffn_dim = 'x' (from %N, a.gin:4) is str, expected int or None"
    ]
    assert project.problems("Model.ffn_dim = 3", ["Model.ffn_dim='4'"]) == [
        "--gin_param #1: Model.ffn_dim = '4' is str, expected int or None; write 4 (overrides a.gin:4 = 3)"
    ]


def test_type_of_torchs_own_class(project: Project) -> None:
    assert project.problems("RUN.optimizer = @AdamW\nAdamW.lr = '3e-4'") == [
        "a.gin:5: AdamW.lr = '3e-4' is str, expected float or Tensor, which a component makes, as in @Name(); "
        "write 3e-4"
    ]


@pytest.mark.parametrize("name", ["wandb_api_key", "hf_token", "token", "password", "aws_secret"])
def test_secret(project: Project, name: str) -> None:
    (text,) = [one for one in project.problems(f"Model.{name} = 'abc123'") if "holds a secret" in one]
    assert text == (
        f"a.gin:4: {name} holds a secret, and a config is written to the run folder; remove it and set the environment "
        "variable that the service reads (WANDB_API_KEY, HF_TOKEN, ...)"
    )


ENDING = (
    "and a config is written to the run folder; remove it and set the environment variable that the service reads "
    "(WANDB_API_KEY, HF_TOKEN, ...)"
)


@pytest.mark.parametrize(
    "text",
    [
        "Model.path = 'see canary-value there'",
        "Model.path = 'see cana' + 'ry-value'",
        "HALF = 'canary'\nModel.path = %HALF + '-value'",
        "Model.options = {'a': ['b', ('canary-value',)]}",
        "Model.options = {'canary-value': 1}",
        "Log.every = 1\nNOTE = 'canary-value'\nModel.path = %NOTE",
    ],
)
def test_the_value_of_a_secret_variable(project: Project, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_CREDENTIALS", "canary-value")
    problems = project.problems(text)
    (found,) = [one for one in problems if "holds the value" in one]
    name = "NOTE" if "NOTE" in text else text.rpartition(".")[2].partition(" ")[0]
    assert f"{name} holds the value of the environment variable AWS_CREDENTIALS, which is a secret, {ENDING}" in found
    assert "canary-value" not in "\n".join(problems)


def test_what_looks_like_a_secret_and_where(project: Project) -> None:
    password = "0123456789"[:9]
    for text, name, form in (
        (f"Model.path = 'https://me:{password}@host/x'", "path", " (a URL with a password)"),
        (f"Model.path = 'Bearer {password * 3}'", "path", " (a bearer token)"),
        ("DB_URL = 'x'\nModel.path = %DB_URL", "DB_URL", ""),
        ("Model.options = {'my_token': 'x'}", "options", ""),
    ):
        (found,) = [one for one in project.problems(text) if "holds a secret" in one]
        assert f"{name} holds a secret{form}, {ENDING}" in found
        assert password not in found


def test_a_special_token_is_no_secret(project: Project) -> None:
    project.load("Model.options = {'my_token': '<|end|>', 'eos_token': 'x', 'num_tokens': '3', 'author': 'me'}")


def test_secret_is_not_repeated(project: Project) -> None:
    for text in ("Model.api_key = 'abc123'", "Model.api_key = abc123 x", "API_KEY = 'abc123'\nModel.path = %API_KEY"):
        assert "abc123" not in "\n".join(project.problems(text))
    token = "hf_" + "aB3" * 10
    assert token not in "\n".join(project.problems(f"Model.path = '{token}'"))
    assert token not in "\n".join(project.problems(f"Model.ffn_dim = '{token}'"))
    assert token not in "\n".join(project.problems("", [f"Model.path={token}"]))


def test_several_at_once_in_order(project: Project) -> None:
    texts = project.problems(
        """\
        ZZ = 3
        Model.droput = 0.1
        Model.ffn_dim = 'x'
        Model.bias = true
        Modle.x = 1
        """,
        ["Model.device='cpu'"],
    )
    assert [one.split(":")[1].split(" ")[0] if one.startswith("a.gin") else "#1" for one in texts] == [
        "4", "5", "6", "7", "8", "#1",
    ]  # fmt: skip


def test_broken_line_causes_no_further_problems(project: Project) -> None:
    text = "Model.norm = Norm\nNorm.eps = 1e-3\nD = 2x\nModel.ffn_dim = %D"
    assert project.problems(text) == [
        "a.gin:4: Norm is not a value; a component is written @Norm; strings need quotes: Model.norm = 'Norm'",
        "a.gin:6: 2x is not a number; strings need quotes: D = '2x'",
    ]


def test_missing_file_causes_no_further_problems(project: Project) -> None:
    (text,) = project.problems("include './gone.gin'\nModel.ffn_dim = %D\n")
    assert "cannot find './gone.gin'" in text


def test_no_gin_file() -> None:
    with pytest.raises(ConfigError, match="no gin file is given; name one with --gin_file"):
        load([])


def test_no_run_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a.gin"
    path.write_text("Local.num_processes = 2\n")
    with pytest.raises(ConfigError) as caught:
        load([path])
    (text,) = caught.value.problems
    assert text.startswith(f"{path}:1: no line binds train, the run itself, which needs model (a component), ")
    assert text.endswith("; include 'training/causal_lm.gin', or bind these")


def test_missing_is_told_where_the_scoped_reference_stands(project: Project) -> None:
    text = "RUN.evaluators = [@a/Eval]\nEval.data = @Data\na/Data.path = 'a'"
    texts = project.problems(text, ["RUN.evaluators=[@a/Eval, @b/Eval, @c/Data]"])
    assert [one.split(";")[0] for one in texts] == [
        "a.gin:5: Data needs path (str), which is not set",
        "--gin_param #1: c/Data needs path (str), which is not set",
    ]


def test_positional_only_arguments_cannot_be_bound(project: Project) -> None:
    source = """
from modlib.components import component

@component("run", "{m}", name="{m}_run")
def run(parameters=None, /, size: int = 3):
    return parameters, size
"""
    mine = Project(project.folder, source)
    try:
        assert mine.problems(f"import {mine.module}\nRUN.parameters = 4", whole=False) == [
            "a.gin:2: RUN.parameters is passed at run time and cannot be set in a gin file; remove the binding"
        ]
    finally:
        mine.forget()


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("1e999", "1e999"),
        ("-1e999", "-1e999"),
        ("float('inf')", "1e999"),
        ("float('nan')", "float('nan')"),
        ("1e999 - 1e999", "float('nan')"),
    ],
)
def test_a_number_that_is_not_finite(project: Project, value: str, written: str) -> None:
    (text,) = project.problems(f"Model.dropout = {value}")
    assert text.startswith(
        f"a.gin:4: Model.dropout ({written}) must be finite; write a number, or name it in non_finite"
    )


def test_it_is_named_with_the_macro_that_holds_it_and_what_it_overrides(project: Project) -> None:
    (text,) = project.problems("DROP = 1e999\nModel.dropout = 0.1\nModel.dropout = %DROP")
    assert text.startswith(
        "a.gin:6: Model.dropout (1e999) must be finite (from %DROP, a.gin:4); write a number, or name"
    )
    assert text.endswith(" (overrides a.gin:5 = 0.1)")


@pytest.mark.parametrize("line", ["betas = (0.9, 1e999)", "options = {'a': [1, {'b': 1e999}]}", "layers = [1e999]"])
def test_a_number_inside_a_value_that_is_not_finite(project: Project, line: str) -> None:
    (text,) = project.problems(f"Model.{line}")
    assert "1e999" in text
    assert "must be finite; write a number" in text


@pytest.mark.parametrize(
    ("name", "value", "written"),
    [
        ("lr", "%RATE", "1e999"),
        ("betas", "(0.9, %RATE)", "(0.9, 1e999)"),
        ("weight_decay", "-%RATE", "-1e999"),
        ("eps", "%RATE", "1e999"),
    ],
)
def test_settings_of_torch_are_finite_too(project: Project, name: str, value: str, written: str) -> None:
    assert project.problems(f"RATE = 1e999\nRUN.optimizer = @AdamW\nAdamW.{name} = {value}") == [
        f"a.gin:6: AdamW.{name} ({written}) must be finite (from %RATE, a.gin:4); write a number"
    ]


def test_where_inf_has_a_meaning_it_may_be_set(project: Project) -> None:
    lines = "Model.norm = @GradientClipper\nGradientClipper.norm_type = 1e999\nModel.anything = float('nan')"
    assert project.load(lines).resolved["GradientClipper.norm_type"] == math.inf
    (text,) = project.problems(f"{lines}\nGradientClipper.max_norm = 1e999")
    assert text == "a.gin:7: GradientClipper.max_norm (1e999) must be finite; write a number or None"


def test_an_int_beyond_every_float(project: Project) -> None:
    (text,) = project.problems("Model.dropout = 10 ** 400")
    assert text.endswith("is int, expected float of at most 1.8e308; use a smaller number")


def test_every_shipped_float_refuses_inf_but_the_ones_that_say_so() -> None:
    """The list is short: who adds to it gives inf a meaning."""
    found = {f"{one.name}.{name}" for one in known_components().values() for name in one.non_finite}
    assert found == {"GradientClipper.norm_type", "LoggingOnlyClipper.norm_type"}
