"""Where a loss meets a framework's arrays and its backward pass. One module for each; none is imported before use."""
