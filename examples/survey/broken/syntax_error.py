def unfinished(value):
    return (value +
