"""Graphs to train on: known data sets by name, files of your own, generators."""

from abkd_fast.data.assemble import ReadOptions as ReadOptions
from abkd_fast.data.assemble import row_normalize as row_normalize
from abkd_fast.data.download import cache_dir as cache_dir
from abkd_fast.data.errors import DataError as DataError
from abkd_fast.data.folder import from_folder as from_folder
from abkd_fast.data.graph_data import GraphData as GraphData
from abkd_fast.data.graph_level import GraphLevelData as GraphLevelData
from abkd_fast.data.graph_sets import read_molecules as read_molecules
from abkd_fast.data.npz import from_npz as from_npz
from abkd_fast.data.ogb import OgbArrays as OgbArrays
from abkd_fast.data.ogb import read_ogb as read_ogb
from abkd_fast.data.ogb import read_ogb_typed as read_ogb_typed
from abkd_fast.data.registry import describe as describe
from abkd_fast.data.registry import load as load
from abkd_fast.data.registry import load_path as load_path
from abkd_fast.data.registry import names as names
from abkd_fast.data.sized import arxiv_features as arxiv_features
from abkd_fast.data.sized import mag_sized as mag_sized
from abkd_fast.data.sized import products_sized as products_sized
from abkd_fast.data.splits import random_split as random_split
from abkd_fast.data.synthetic import dcsbm as dcsbm
from abkd_fast.data.synthetic import rmat as rmat
from abkd_fast.data.typed_arrays import TypedArrays as TypedArrays
