"""Latency of models: measuring, single-node queries, and the report of a student."""

from abkd_fast.latency.breakdown import Breakdown as Breakdown
from abkd_fast.latency.breakdown import OpCost as OpCost
from abkd_fast.latency.breakdown import breakdown as breakdown
from abkd_fast.latency.measure import compare as compare
from abkd_fast.latency.measure import measure as measure
from abkd_fast.latency.measure import throughput as throughput
from abkd_fast.latency.page import print_report as print_report
from abkd_fast.latency.page import write_report as write_report
from abkd_fast.latency.profile import profile as profile
from abkd_fast.latency.samples import Measurement as Measurement
from abkd_fast.latency.samples import samples_needed as samples_needed
from abkd_fast.latency.server import NodeServer as NodeServer
from abkd_fast.latency.subjects import Subject as Subject
from abkd_fast.latency.subjects import flat_forward as flat_forward
from abkd_fast.latency.subjects import load_subjects as load_subjects
