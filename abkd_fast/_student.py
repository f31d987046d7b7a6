"""The student that ``--compression`` asks for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import nn

from abkd_fast.compression import choose_student, parameters, parse_ratio
from abkd_fast.config import DistillConfig, SettingError
from abkd_fast.data import GraphData
from abkd_fast.metrics import count_parameters
from abkd_fast.model_file import load_model
from abkd_fast.nn import ModelSpec


def with_student(
    config: DistillConfig, data: GraphData, call: Callable[[str, GraphData], nn.Module]
) -> DistillConfig:
    """``config`` with the student that --compression asks for; says which it is.

    ``call`` makes the teacher of a function that --teacher names.
    """
    if config.compression is None:
        return config
    sizes = data.num_features, data.num_classes
    if config.trains_teacher:
        largest = ModelSpec.parse(config.teacher)
        options = config.teacher_options.options(largest.family, data)
        teacher = parameters(largest, *sizes, options)
    elif config.teacher_file is not None:
        model, about = load_model(config.teacher_file)
        largest, teacher = ModelSpec.parse(about.spec), count_parameters(model)
    else:
        largest = replace(ModelSpec.parse(config.student), num_layers=64, hidden_channels=1024)
        teacher = count_parameters(call(config.teacher, data))
    options = config.student_options.options(largest.family, data)

    def size(spec: ModelSpec) -> int:
        return parameters(spec, *sizes, options)

    try:
        ratio = parse_ratio(config.compression)
        student, count = choose_student(ratio, teacher, largest, size)
    except ValueError as error:
        raise SettingError(str(error)) from error
    print(
        f"student {student}: {count:,} parameters, {teacher / count:.1f}x fewer than the "
        f"teacher's {teacher:,} (asked for {ratio:g}x)",
        flush=True,
    )
    return replace(config, student=str(student))
