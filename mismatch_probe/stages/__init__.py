"""The way of the data: record, score, measure, each alone or all of them as an audit."""
