"""Statistics of studies against known values."""

import numpy as np
import pytest
from scipy import stats

from abkd_fast.study.statistics import compare, holm, interval, paired_tests


def test_holm_by_hand():
    # sorted .01 .02 .03 .04 times 4 3 2 1 = .04 .06 .06 .04, then the running maximum
    assert holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([0.2]) == [0.2] and holm([]) == []


def test_paired_tests_by_hand():
    # differences 1 2 3 4 5: t = 3 / (sqrt(2.5) / sqrt(5)) with 4 degrees of freedom;
    # all signs equal: p of the exact signed-rank test is 2 / 2**5
    t, wilcoxon = paired_tests([1.0, 2.0, 3.0, 4.0, 5.0])
    assert t == pytest.approx(2 * stats.t.sf(3 / np.sqrt(0.5), 4))
    assert wilcoxon == pytest.approx(2 / 32)
    assert paired_tests([0.0, 0.0, 0.0]) == (1.0, 1.0)
    assert paired_tests([0.5, 0.5, 0.5])[0] == 1.0


def test_equal_counts_tie_in_the_ranks():
    # accuracies are sums of floats: 0.1 + 0.2 and 0.3 are one difference
    noisy = [0.1 + 0.2, 0.3, -0.3, 0.6, 0.9]
    assert paired_tests(noisy) == paired_tests([0.3, 0.3, -0.3, 0.6, 0.9])


def test_interval_is_bca_and_repeats():
    values = np.random.default_rng(3).exponential(size=25)
    low, high = interval(values)
    assert (low, high) == interval(values)
    assert low < values.mean() < high
    # of a skewed sample BCa's interval reaches further up than down, unlike the normal one
    assert high - values.mean() > values.mean() - low
    half = stats.t.ppf(0.975, 24) * values.std(ddof=1) / 5
    assert high - low == pytest.approx(2 * half, rel=0.25)
    assert interval([2.0, 2.0, 2.0]) == (2.0, 2.0)


def test_equal_values_have_an_interval_of_nothing_and_no_t_test():
    """Ten equal accuracies: their mean may differ from each in the last digit."""
    values = [100 * 22 / 36] * 10
    assert interval(values) == (np.mean(values), np.mean(values))
    t_p, wilcoxon_p = paired_tests([2.0] * 10)
    assert t_p == 1.0 and wilcoxon_p == 1 / 512


def test_comparisons_take_common_seeds_and_one_family():
    base = {0: 80.0, 1: 81.0, 2: 79.0, 3: 80.5, 4: 80.1}
    better = {seed: value + 1 + 0.1 * seed for seed, value in base.items()}
    same = {seed: value for seed, value in base.items() if seed != 4}
    found = {c.method: c for c in compare("none", base, {"a": better, "b": same, "c": {0: 1.0}})}
    assert set(found) == {"a", "b"}  # c has one seed
    assert found["a"].n == 5 and found["b"].n == 4
    assert found["a"].difference == pytest.approx(1.2) and found["b"].difference == 0.0
    assert found["a"].low <= 1.2 <= found["a"].high
    assert found["a"].t_holm == pytest.approx(2 * found["a"].t_p)
    assert found["a"].wilcoxon_holm == pytest.approx(2 * 2 / 32)
    assert found["b"].t_holm == 1.0
