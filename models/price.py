"""price: the price per night of a hotel booking, scikit-learn to ONNX.

Numbers enter as float32 [N, 1] and categories as string [N, 1], one named input each (`NUMBERS`,
`CATEGORIES`); price float32 [N, 1]. A category never seen in training counts as none.
"""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from catalog import Job
from numpy.typing import NDArray
from side_packages import side_package
from skl2onnx import convert_sklearn
from skl2onnx.common.data_types import FloatTensorType, StringTensorType
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import GradientBoostingRegressor
from sklearn.metrics import mean_absolute_error, r2_score
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import OneHotEncoder

# Input name -> column of the table.
NUMBERS = {
    "lead_time": "lead_time",
    "weekend_nights": "stays_in_weekend_nights",
    "week_nights": "stays_in_week_nights",
    "adults": "adults",
    "children": "children",
    "special_requests": "total_of_special_requests",
}
ARRIVAL_DAY = "arrival_day"  # day of the year, 1..366
CATEGORIES = {
    "room_type": "reserved_room_type",
    "meal": "meal",
    "market_segment": "market_segment",
    "customer_type": "customer_type",
}
HELD_OUT_ROWS = 3000
SEED = 7


def build(job: Job) -> None:
    job.say("reading the table")
    table, prices = read_table(
        job.files["hotel_rates.pkl.compress"], side_package("pandas", job.cache)
    )
    order = np.random.default_rng(SEED).permutation(len(table))
    test, train = order[:HELD_OUT_ROWS], order[HELD_OUT_ROWS:]
    job.say(f"training on {len(train)} bookings")
    pipeline = _pipeline().fit(table.iloc[train], prices[train])
    guesses = pipeline.predict(table.iloc[test])
    metrics = {
        "held-out bookings": len(test),
        "held-out mean absolute error": round(float(mean_absolute_error(prices[test], guesses)), 2),
        "held-out R2": round(float(r2_score(prices[test], guesses)), 3),
    }
    job.say("writing the ONNX graph")
    (job.folder / "model.onnx").write_bytes(_to_onnx(pipeline))
    (job.folder / "metrics.json").write_text(json.dumps(metrics, indent=1) + "\n")


def read_table(path: Path, pd: Any) -> tuple[Any, NDArray[np.float64]]:
    """The model's inputs as a data frame of `pd` (pandas), and the price of each row."""
    # A pickle can run code: this one is the file whose sha256 the catalogue pins.
    rates = pd.read_pickle(path, compression="xz")
    numbers = {name: rates[column].astype("float32") for name, column in NUMBERS.items()}
    arrival = pd.to_datetime(rates["arrival_date"]).dt.day_of_year.astype("float32")
    categories = {name: rates[column].astype(object) for name, column in CATEGORIES.items()}
    table = pd.DataFrame({**numbers, ARRIVAL_DAY: arrival, **categories})
    return table, rates["avg_price_per_room"].to_numpy(np.float64)


def _pipeline() -> Any:
    numbers = [*NUMBERS, ARRIVAL_DAY]
    one_hot = OneHotEncoder(handle_unknown="ignore", sparse_output=False)
    columns = [("numbers", "passthrough", numbers), ("categories", one_hot, list(CATEGORIES))]
    # Not the histogram trees: skl2onnx 1.20 cannot write them with onnx 1.23.
    trees = GradientBoostingRegressor(
        n_estimators=200, max_depth=6, subsample=0.5, random_state=SEED
    )
    return Pipeline([("columns", ColumnTransformer(columns)), ("trees", trees)])


def _to_onnx(pipeline: Any) -> bytes:
    inputs = [(name, FloatTensorType([None, 1])) for name in (*NUMBERS, ARRIVAL_DAY)]
    inputs += [(name, StringTensorType([None, 1])) for name in CATEGORIES]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = convert_sklearn(
            pipeline,
            "price",
            initial_types=inputs,
            final_types=[("price", FloatTensorType([None, 1]))],
            target_opset={"": 17, "ai.onnx.ml": 3},
        )
    content: bytes = model.SerializeToString()
    return content
